"""A trained model for elsewhere: an ONNX file, which runs through the same windows, and a Space that shows it."""
