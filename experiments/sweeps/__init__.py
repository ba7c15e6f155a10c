"""Many runs from one command: trials, jobs, launchers, and training trials as one program."""
