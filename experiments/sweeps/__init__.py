"""Many runs from one command: trials, which of them can share a program, jobs, and launchers."""
