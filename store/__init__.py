"""What we keep: record types, pools, the SQLite ledger, exports. Knows nothing of the teacher."""
