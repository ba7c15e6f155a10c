"""Many runs from one command: trials, jobs, launchers, and trials that train as one program."""
