"""Analysis of training steps: drift, differences, blame, the smallest remedy, what-if."""
