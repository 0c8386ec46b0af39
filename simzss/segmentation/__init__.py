"""From a trained model and class names to label maps."""
