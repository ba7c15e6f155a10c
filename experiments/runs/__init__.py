"""Training, of one run or of several trials as one program: the files they write, and checks."""
