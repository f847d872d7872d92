"""Who learns, and when: group advantages, allocations over tokens, schedules over steps.

Pure functions. ``schedule`` is plain Python; ``advantage`` and ``allocation`` need torch only.
"""
