// The whole page: the gate without a key, the console with one.

import { useEffect, useState } from 'preact/hooks';
import { Client } from '../api/client';
import { Failure } from '../api/failure';
import { forgetKey, rememberKey, rememberedKey } from '../state/remember';
import { openSandbox, place, takeKeyFromAddress } from '../state/place';
import { Session, SessionProvider, useSession } from '../state/session';
import { useStore } from '../state/store';
import { CreateButton } from './create';
import { Detail } from './detail';
import { Questions } from './dialog';
import { Header } from './header';
import { KeyGate } from './key_gate';
import { SandboxList } from './list';
import { Empty } from './parts';
import { Problems } from './problems';
import { Timings } from './timings';

export function App() {
  const [session, setSession] = useState<Session | null>(null);
  const [trying, setTrying] = useState(false);
  const [failure, setFailure] = useState<Failure | null>(null);

  const signIn = async (key: string) => {
    setTrying(true);
    setFailure(null);
    try {
      const client = new Client(key);
      const begun = new Session(client, await client.whoami());
      rememberKey(key);
      setSession(begun);
    } catch (thrown) {
      const why = Failure.from(thrown);
      // A server that is not there says nothing about the key.
      if (why.code === 'unauthenticated') forgetKey();
      setFailure(why);
    }
    setTrying(false);
  };

  const signOut = () => {
    session?.end();
    forgetKey();
    setSession(null);
    setFailure(null);
  };

  useEffect(() => {
    const known = takeKeyFromAddress() ?? rememberedKey();
    if (known) void signIn(known);
  }, []);

  useEffect(() => {
    const onHash = () => {
      const key = takeKeyFromAddress();
      if (!key) return;
      signOut();
      void signIn(key);
    };
    window.addEventListener('hashchange', onHash);
    return () => window.removeEventListener('hashchange', onHash);
  }, [session]);

  if (!session) return <KeyGate trying={trying} failure={failure} onKey={signIn} />;
  return (
    <SessionProvider value={session}>
      <Console onForget={signOut} />
    </SessionProvider>
  );
}

function Console({ onForget }: { onForget: () => void }) {
  const session = useSession();
  const { sandbox: chosen } = useStore(place);
  const notice = useStore(session.notice);
  return (
    <div class="console">
      <Header onForget={onForget} />
      <Problems />
      <div class={chosen ? 'columns has-chosen' : 'columns'}>
        <SandboxList chosen={chosen} />
        <main class="main">
          {chosen ? <Detail key={chosen} id={chosen} /> : <Welcome />}
          <Timings sandbox={chosen} />
        </main>
      </div>
      <p class="sr-only" role="status">
        {notice}
      </p>
      <Questions />
    </div>
  );
}

function Welcome() {
  const session = useSession();
  const count = useStore(session.sandboxes).size;
  return (
    <Empty title={count > 0 ? 'No sandbox is chosen' : 'There is no sandbox yet'}>
      <p>{count > 0 ? 'Choose one in the list, or make another.' : 'A sandbox is a small virtual machine of its own: made from a template, yours until it is destroyed.'}</p>
      <CreateButton testid="create-open-first" onCreated={openSandbox} />
    </Empty>
  );
}
