"""`report.html`: one page a run, made of the files in its folder alone."""
