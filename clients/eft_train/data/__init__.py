"""The data of a training: files and data sets, the forms of their rows, and rows as token ids."""
