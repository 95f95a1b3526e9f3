"""What computes it: devices, memory tiers, links, topology, clusters; power, price and carbon."""
