"""The views of an image, made on the device from uint8."""
