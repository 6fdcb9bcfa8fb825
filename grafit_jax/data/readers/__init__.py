"""Images and labels from TFDS, folders, CSV, npz and JSON files."""
