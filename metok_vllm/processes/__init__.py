"""Processes of a server: started, watched, and removed with all they own."""
