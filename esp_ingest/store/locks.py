"""Advisory locks: every key that this program takes, by its purpose. sql/queries.sql writes ``:NAME_lock`` for one.

Other programs on the same database may take advisory locks too, so the keys are large numbers without a meaning. A key
keeps its number for ever, since daemons of two versions run side by side during an upgrade.
"""

LOCKS = {
    "migration": 7046029254386353131,  # one migration at a time
    # 7046029254386353132 was taken for rejects by programs before schema 15 and stays unused.
    "lead": 7046029254386353133,  # one daemon of a share group runs the rules
    "lifecycle": 7046029254386353134,  # one run of the lifecycle at a time
}
