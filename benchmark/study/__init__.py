"""Many runs, one ranking: what the runs of a study say together, and how sure it is."""
