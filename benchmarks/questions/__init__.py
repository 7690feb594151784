"""Questions about videos: files, settings to compare, requests, confidence intervals."""
