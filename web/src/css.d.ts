// Style sheets are imported for the bundler's sake; there is nothing in them for the program.
declare module '*.css';
