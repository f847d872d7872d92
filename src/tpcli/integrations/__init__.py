"""Our credit inside trainers of others: one module a library, none of which tpcli itself needs."""
