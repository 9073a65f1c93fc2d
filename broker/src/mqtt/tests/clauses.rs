//! What the clauses of the specification allow and forbid, packet by packet.
