"""Images and labels: files, folders and data sets of others, as batches."""
