"""The hardware of a training: devices, processes, memory, and transfer of data between them."""
