"""The benchmark runner: tasks in worker processes, rows that survive a crash, one Parquet file at the end.

`rows` says what a row holds, `task` how one is measured, `worker` and `isolated` run a task in a process of
its own, `store` keeps the rows, `local` and `cluster` work through a list of tasks, `claims` checks what was
claimed against what else is known, `command` is `wdmoe-opt bench run`.
"""
