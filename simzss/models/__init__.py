"""Networks: backbones, text encoders, SAM, the mask head, and the folder that stores a trained model."""
