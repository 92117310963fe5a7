"""From annotated images to batches: what a data set is, crops of single people, augmentation."""
