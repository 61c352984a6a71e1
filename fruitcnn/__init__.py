"""From a labelled image folder to a frozen classifier, and from there to predictions over image archives."""
