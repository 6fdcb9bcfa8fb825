"""Augmentation: random views of images, computed on the device."""
