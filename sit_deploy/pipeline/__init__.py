"""From a checkpoint to a bundle: the steps of `sit-deploy build`, in the order of their work."""
