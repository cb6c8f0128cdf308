"""lengths -> rows: the split, the plan of batches, filled rows."""
