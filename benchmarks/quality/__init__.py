"""Quality of settings: their answers compared with dense ones, through a real server."""
