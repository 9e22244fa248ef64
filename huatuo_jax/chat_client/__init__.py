"""Asks OpenAI-compatible endpoints for texts, at any scale, and pays for no text twice.

`calls` says what is asked for and what may come back, `reasoning` what of a reply is the text, `pacing` when the next request may
go out, `client` sends it and tries again, `ledger` keeps every reply on the disk. Nothing here knows what the texts are for:
`data_tools.unify` is the first user. Needs the packages of the extra `unify`.
"""
