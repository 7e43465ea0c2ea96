"""Sources, images, tables, splits, datasets and the policy for restricted data."""
