"""The signer process: the enclave's courier. It decides nothing.

It carries frames, orders, gate calls and sealed records, opens connections and listens on none.
"""
