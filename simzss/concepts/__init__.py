"""Language without tensors: noun concepts of captions, the bank that names them, their tokens."""
