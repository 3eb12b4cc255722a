"""Speed measured side by side in one run: sides take turns on pinned threads; results are medians and ratios."""
