"""METok in the chat endpoint: reading a request, reporting what was done."""
