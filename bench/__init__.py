"""Speed, side by side: every case runs whole processes in turn on this machine and prints ratios. See README.md."""
