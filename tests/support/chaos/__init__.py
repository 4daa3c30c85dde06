"""Random work of many workers during faults, and an account of what became of it.

plan     what an actor does in each step: a function of the seed
checks   what every read must fulfil
deeds    the methods that carry out a step in a worker process, and its journal
account  compare the journals with what is stored
faults   what happens meanwhile to servers and connections
field    the servers, the proxies, the workers and the run
"""
