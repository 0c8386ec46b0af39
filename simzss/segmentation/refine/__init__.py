"""From coarse scores to scores that follow the edges of the photo, without learning."""
