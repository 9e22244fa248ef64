"""The ground floor of both programs: files that are never half-written, one JSON reader, resumable tasks, the API key.

Every journey begins and ends here. Knows no record, model or config; start with `files.py`.
"""
