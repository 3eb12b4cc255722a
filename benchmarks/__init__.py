"""Speed measured side by side in one run: rivals interleaved, threads pinned, medians and ratios."""
