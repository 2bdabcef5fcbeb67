//! Random snapshots, forks, rollbacks and removals against a model: nothing that lives is lost, nothing that is dead stays.

use crate::chance::Chance;
use crate::world::World;

/// What somebody knows, in memory and on the disk.
type Known = u64;

#[derive(Clone, Debug)]
struct Sandbox {
    id: String,
    known: Known,
}

#[derive(Clone, Debug)]
struct Snapshot {
    id: String,
    of: String,
    known: Known,
}

/// Most of each at a time.
const AT_ONCE: usize = 4;

struct Model<'a> {
    world: &'a World,
    sandboxes: Vec<Sandbox>,
    snapshots: Vec<Snapshot>,
}

#[test]
fn root_random_branches_at_any_moment_agree_with_the_model() {
    let chance = Chance::of_this_run();
    let steps = if chance.soak_rounds().is_some() { 100 } else { 12 };
    let world = World::new();
    let agent = world.agent(&[]);
    let id = world.create(&["--memory", "128"]);
    let mut model = Model { world: &world, sandboxes: vec![Sandbox { id, known: 0 }], snapshots: Vec::new() };
    model.write(0, 1);
    for step in 2..steps + 2 {
        let [what, which, other] = [8, 1 << 16, 1 << 16].map(|below| chance.pick(step * 3 + below, below));
        println!("{step}: {what} of {:?} and {:?}", model.sandboxes, model.snapshots);
        model.step(what, which as usize, other as usize, step);
    }
    let Model { sandboxes, snapshots, .. } = model;
    for Sandbox { id, known } in &sandboxes {
        assert_eq!(read(&world, id), *known, "{id}");
    }
    world.remove(&sandboxes.into_iter().map(|sandbox| sandbox.id).collect::<Vec<_>>());
    for Snapshot { id, known, .. } in snapshots {
        let child = world.create(&["--snapshot", &id]);
        assert_eq!(read(&world, &child), known, "{id}");
        world.remove(&[child]);
        world.json(&["snapshot", "rm", &id]);
    }
    for folder in ["sandboxes", "snapshots"] {
        let left = std::fs::read_dir(world.dir().join(folder)).unwrap().count();
        assert_eq!(left, 0, "what is dead stays in {folder}");
    }
    agent.stop();
    world.finish_agent();
}

fn read(world: &World, id: &str) -> Known {
    let found = world.sh(id, "cat /root/known /dev/shm/known");
    let mut lines = found.lines();
    let (disk, memory) = (lines.next().unwrap(), lines.next().unwrap());
    assert_eq!(disk, memory, "{id}: its disk and its memory are of different moments");
    disk.parse().unwrap()
}

impl Model<'_> {
    fn write(&mut self, index: usize, value: Known) {
        let sandbox = &mut self.sandboxes[index];
        self.world.sh(&sandbox.id, &format!("echo {value} > /root/known; echo {value} > /dev/shm/known"));
        sandbox.known = value;
    }

    fn step(&mut self, what: u64, which: usize, other: usize, step: u64) {
        let index = which % self.sandboxes.len();
        let sandbox = self.sandboxes[index].clone();
        let snapshot = (!self.snapshots.is_empty()).then(|| other % self.snapshots.len());
        match (what, snapshot) {
            (0, _) if self.snapshots.len() < AT_ONCE => {
                let id = self.world.snapshot(&sandbox.id, &format!("at-{step}"));
                self.snapshots.push(Snapshot { id, of: sandbox.id, known: sandbox.known });
            }
            (1, _) if self.sandboxes.len() < AT_ONCE => {
                let id = self.world.fork(&sandbox.id, 1).remove(0);
                self.sandboxes.push(Sandbox { id, ..sandbox });
            }
            (2, Some(from)) if self.sandboxes.len() < AT_ONCE => {
                let Snapshot { id, known, .. } = &self.snapshots[from];
                self.sandboxes.push(Sandbox { id: self.world.create(&["--snapshot", id]), known: *known });
            }
            (3, Some(of)) => {
                let Snapshot { id, of, known } = self.snapshots[of].clone();
                // The sandbox it is of may be gone.
                if let Some(sandbox) = self.sandboxes.iter_mut().find(|sandbox| sandbox.id == of) {
                    self.world.sandbox(&["rollback", &of, &id]);
                    sandbox.known = known;
                }
            }
            (4, Some(gone)) => {
                self.world.json(&["snapshot", "rm", &self.snapshots.remove(gone).id]);
            }
            (5, _) if self.sandboxes.len() > 1 => {
                self.world.remove(&[self.sandboxes.remove(index).id]);
            }
            (6, _) => {
                self.world.sandbox(&["pause", &sandbox.id]);
                self.world.sandbox(&["resume", &sandbox.id]);
            }
            _ => self.write(index, step),
        }
        let index = which % self.sandboxes.len();
        assert_eq!(read(self.world, &self.sandboxes[index].id), self.sandboxes[index].known, "step {step}");
    }
}
