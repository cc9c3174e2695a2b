% Three trials of feedback in MATLAB, or Octave 7 and later, beside `rtdecode gateway` on the same machine.
base = 'http://127.0.0.1:8766';
% The header says that no page of another site asks: such a page could not set it.
options = weboptions('ContentType', 'text', 'Timeout', 40, 'HeaderFields', {'X-Rtdecode' '1'});
announce = @(varargin) jsondecode(webwrite([base '/request/event'], varargin{:}, options));
announce('kind', 'run_start', 'run', '1');
seen = 0; after = 0;
for number = 0:2
    trial = sprintf('r01t%02d', number);
    answer = announce('kind', 'trial', 'run', '1', 'trial', trial, 'onset_s', num2str(20 * number), ...
        'duration_s', '2', 'condition', sprintf('seen-%d', seen));
    if ~answer.ok, error(answer.error); end
    shown = false;
    while ~shown
        found = jsondecode(webread([base '/messages'], 'topics', 'feedback', 'after', num2str(after), ...
            'wait_s', '20', options));
        after = found.after;
        for k = 1:numel(found.messages)
            message = found.messages(k);
            if iscell(message), message = message{1}; end
            if strcmp(message.trial, trial) && strcmp(message.state, 'shown')
                seen = message.step; shown = true;
                fprintf('%s: step %d of %d\n', trial, seen, message.steps);
            end
        end
    end
end
announce('kind', 'run_end', 'run', '1');
