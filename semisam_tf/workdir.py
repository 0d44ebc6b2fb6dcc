"""Names of the files in a run's folder, for those who write them and those who read them."""

RUN_FILE = "run.json"
# The record of opened labels.
LEDGER_FILE = "label_access.jsonl"
RESULT_FILE = "result.json"
HISTORY_FILE = "history.jsonl"
METRICS_FILE = "metrics.json"
REPORT_FILE = "report.html"
# Folder of the rounds of self-training before the last, a run each: rounds/1, rounds/2, ...
ROUNDS_FOLDER = "rounds"
# Of the processes that are not the chief, a folder each for what they write for themselves: workers/1, ...
WORKERS_FOLDER = "workers"
# What report.html draws of scored cases (from evaluate) and of SAM's targets (from training).
SCORED_OVERLAYS_FILE = "overlays/scored.json"
SAM_OVERLAYS_FILE = "overlays/sam.json"
