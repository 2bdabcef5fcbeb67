// The first template of a host: asked for, and watched until it is there.

import { useEffect, useState } from 'preact/hooks';
import { Failure } from '../api/failure';
import type { Operation } from '../api/types';
import { OPERATION_POLL_MS } from '../limits';
import { useSession } from '../state/session';
import { Button } from './parts';
import { ProblemHere } from './problems';

export function BuildTemplate({ onBuilt }: { onBuilt: () => void }) {
  const session = useSession();
  const [operation, setOperation] = useState<Operation | null>(null);
  const [failure, setFailure] = useState<Failure | null>(null);

  const begin = async () => {
    setFailure(null);
    const begun = await session.ask({ what: 'Template build', sandbox: null, act: (client) => client.buildTemplate('minimal'), failed: setFailure });
    if (begun) setOperation(begun);
  };

  useEffect(() => {
    if (!operation) return;
    if (operation.state === 'succeeded') return onBuilt();
    if (operation.state === 'failed') return setFailure(failureOf(operation));
    const timer = setTimeout(() => session.client.operation(operation.id).then(setOperation, (thrown) => setFailure(Failure.from(thrown))), OPERATION_POLL_MS);
    return () => clearTimeout(timer);
  }, [operation]);

  const running = operation?.state === 'running';
  return (
    <div class="build">
      <p>A template is what sandboxes are made from. The smallest takes a few minutes to build, once.</p>
      <Button testid="template-build" enabled={!running} onPress={begin}>
        {running ? 'Building…' : 'Build the template “minimal”'}
      </Button>
      {operation && operation.progress.length > 0 && (
        <ol class="progress-lines mono" data-testid="template-progress">
          {operation.progress.map((line, index) => (
            <li key={index}>{line}</li>
          ))}
        </ol>
      )}
      <ProblemHere what="Template build" failure={failure} />
    </div>
  );
}

function failureOf(operation: Operation): Failure {
  return operation.error ? Failure.fromBody(operation.error) : new Failure('failed', 'The build failed without saying why.', 'See the server’s log.', null);
}
