-- The checks before those of a commit's content: the session is not another's, the head is readable, the lease is held,
-- the keys are complete, and no earlier attempt made the commit.

-- Returns the reply that ends the script, or nil if the commit may continue; then the facts of the session (nil for a
-- new one), the values of its head (see open_head), the revision, the time (ms) and the lease (false for none). The
-- values also have the revision that the commit follows and the receipts until then, those of a former session of the
-- id included: `counted` and `known`; and `began`, the epoch of a new session's log. `moves`: the session is imported,
-- with revisions and receipts of its own.
-- `others` are the session's other keys: log, nodes, jumps, dead, state. `access` is the owner for whom the caller
-- acts. `rows` are ledger fields to read with the head, or false.
local function admit(session, head, others, access, rows, tag, meaning, lease, adds_nodes, adds_state, moves)
  local facts, broken, stored = open_head(head, others, access, rows)
  if broken then return refuse(session, broken) end
  if stored.deleted then return {'deleted', session} end
  local actual = facts and facts.revision or '0'
  if not facts and redis.call('HEXISTS', head, 'documents') == 1 then return {'exists', session, actual} end
  stored.counted, stored.known = actual, stored.receipts
  local now, past = milliseconds(), not facts and past_of(head)
  if past == nil then return refuse(session, {'corrupt', 'head', 'its record of a former session is unreadable'}) end
  stored.began = past and math.max(now, past.epoch + 1) or now
  if past and not moves then stored.counted, stored.known = past.revision, past.receipts end
  local wrong = broken_receipts(stored.known, stored.counted)
  if wrong then return refuse(session, wrong) end
  local found, made = find_receipt(stored.known, tag, stored.counted)
  local held_lease = stored.lease and read_lease(stored.lease)
  if held_lease == nil then return refuse(session, {'corrupt', 'head', 'its lease is unreadable'}) end
  local why = lease ~= '' and lost_claim(held_lease, lease, now)
  if why then return {'lost', session, why, made or ''} end
  wrong = facts and torn_for_commit(facts, others, adds_nodes, adds_state)
  if wrong then return refuse(session, wrong) end
  past = found and past_of(head)
  if is_former(past, made) then
    if not moves then return {'deleted', session} end
  elseif found then
    if string.sub(stored.receipts, found + 8, found + 15) ~= meaning then return {'reused', session} end
    return {'replayed', session, made, facts.epoch + 0}
  end
  return nil, facts, stored, actual, now, held_lease
end

-- Returns the reply to a commit that builds on another head than the session's; nil if it builds on this one.
-- `expected` and `builds_on`: the revision and the tag of the commit that it builds on, '' for any.
local function misplaced(session, head, stored, expected, builds_on, actual)
  if (expected == '' or expected == actual) and (builds_on == '' or is_last(stored.receipts, builds_on)) then
    return nil
  end
  if is_former(expected ~= '' and past_of(head), expected) then return {'gone', session, actual} end
  return {'conflict', session, actual}
end
