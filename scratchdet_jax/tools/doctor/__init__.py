"""What a careful person checks about a data set before training; the command is tools/doctor.py."""
