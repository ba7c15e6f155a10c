"""From records to findings: which runs are comparable, which method won, and how sure that is."""
