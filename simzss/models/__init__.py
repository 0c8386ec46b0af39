"""The two towers and what joins them: backbone, text encoder, prototypes and pooling."""
