"""AMDIM: features of images, or of sound and sight, that tell views apart."""
