"""The engine `ray`: reflection and scoring as one stream of Ray Data, so that students score while replies still arrive.

    block numbers -> Ask (one actor, waits for Teaching) -> Score (a pool of students) -> a Parquet file a block, by the driver

The driver's machine keeps all that is durable: the journal, and the run's folder under the cache of `datasets`. A student, an
actor or a whole other node that dies costs what it had in hand, which is done again; a reply that was paid for is in the journal.

Nothing is imported here: the teacher's processes need no torch.
"""
