-- The rest of a reply for a command that failed because its key has another type. Any other failure is raised.
local function unusable(family, failure)
  local text = tostring(failure.err)
  if not string.find(text, 'WRONGTYPE', 1, true) then error(text) end
  return {'corrupt', family, 'holds another type'}
end

-- The reply of a refusal: its word, the echoed argument, the rest.
local function refuse(session, rest)
  table.insert(rest, 2, session)
  return rest
end
